"""How the four services run: real servers on one machine, identities, the stack, and the `paidan` command."""
