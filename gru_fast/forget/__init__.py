"""One request from documents to dossier: what `gru-fast forget`, `verify` and `restore` do."""
