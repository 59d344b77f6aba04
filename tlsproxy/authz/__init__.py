"""Who is asking, what they may do, and the line that says so. Pure: no socket, file, clock, randomness or log."""
