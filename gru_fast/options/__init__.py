"""Options as dataclasses: their flags, YAML keys and help, and which a command takes."""
