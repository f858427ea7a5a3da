"""Messages out: who is told what, when and by which channel."""
