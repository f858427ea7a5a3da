"""What two or more services must agree on: facts, subjects, the bus, the turn, the register, clocks, auth, telemetry."""
