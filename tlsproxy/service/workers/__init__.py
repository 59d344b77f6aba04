"""Several processes that serve as one: their supervisor, what passes between it and them, and what it makes of that."""
