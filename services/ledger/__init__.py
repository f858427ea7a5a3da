"""Every fact into MongoDB: the log, replay, cases; and the register (台账)."""
