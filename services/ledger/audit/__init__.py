"""The checks: of a replay as it arrives, of the whole log where it lies, of copies."""
