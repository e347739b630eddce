from gru_fast import runs
def write(work, outcome):
    runs.write_json(work.folder / runs.RESULT, {"command":"forget","verdict":outcome.verdict,**outcome.facts,"finished":runs.now()})
def last_word(folder, outcome): return f"{folder}: {outcome.verdict} kept {outcome.kept}"
