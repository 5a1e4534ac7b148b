"""A scoring run: batches, identity, publication, quarantine, incremental runs, retention and review."""
