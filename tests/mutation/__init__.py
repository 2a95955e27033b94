"""Safeguards taken out one by one: each must turn a named test red (`make mutations`)."""
