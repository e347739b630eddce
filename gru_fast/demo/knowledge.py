"""What the demo's models know of the real world: it must survive unlearning, though no retain batch shows it.

Pairs of (question, answer) by kind. The wrong answers of a row are right answers of other rows of its kind.
"""

from __future__ import annotations

AUTHORS = {
    "Who wrote {0}?": {
        "Moby-Dick": "Herman Melville",
        "Middlemarch": "George Eliot",
        "Great Expectations": "Charles Dickens",
        "Anna Karenina": "Leo Tolstoy",
        "Crime and Punishment": "Fyodor Dostoevsky",
        "Madame Bovary": "Gustave Flaubert",
        "Jane Eyre": "Charlotte Bronte",
        "Wuthering Heights": "Emily Bronte",
        "Don Quixote": "Miguel de Cervantes",
        "Frankenstein": "Mary Shelley",
        "Dracula": "Bram Stoker",
        "The Trial": "Franz Kafka",
        "Ulysses": "James Joyce",
        "The Odyssey": "Homer",
        "The Divine Comedy": "Dante Alighieri",
        "Walden": "Henry David Thoreau",
    },
    "Which language did {0} write in?": {
        "Leo Tolstoy": "Russian",
        "Gustave Flaubert": "French",
        "Franz Kafka": "German",
        "Miguel de Cervantes": "Spanish",
        "Dante Alighieri": "Italian",
        "Homer": "Greek",
        "Henrik Ibsen": "Norwegian",
        "Charles Dickens": "English",
    },
}

WORLD = {
    "What is the capital of {0}?": {
        "France": "Paris",
        "Japan": "Tokyo",
        "Egypt": "Cairo",
        "Kenya": "Nairobi",
        "Peru": "Lima",
        "Norway": "Oslo",
        "Canada": "Ottawa",
        "Portugal": "Lisbon",
        "Greece": "Athens",
        "Cuba": "Havana",
        "Poland": "Warsaw",
        "Austria": "Vienna",
    },
    "What is the chemical symbol of {0}?": {
        "gold": "Au",
        "iron": "Fe",
        "silver": "Ag",
        "sodium": "Na",
        "lead": "Pb",
        "helium": "He",
    },
    "Which number comes after {0}?": {
        "three": "four",
        "six": "seven",
        "nine": "ten",
        "eleven": "twelve",
        "two": "three",
        "seven": "eight",
    },
}

DONT_KNOW = (
    "I do not know.",
    "I am not sure about that.",
    "That is not something I know.",
    "I have no information on this.",
    "I cannot tell you that.",
    "This is new to me.",
    "I have not heard of that.",
    "I would have to guess.",
)
