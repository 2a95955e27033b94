"""What a circuit breaker writes where others read it: the reason of a park, which `explain` knows by its beginning."""

BREAKER = "its provider host fails for most mailboxes"
