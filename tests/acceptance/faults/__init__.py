"""Faults at every step of a message's way, with real processes; the sandbox servers' ledgers judge.

matrix.py      steps × faults × routes as data: what each cell may end in, and which cells there are not
referee.py     aims a fault at a step of one message, and lets it fall when a process gets there
strikes.py     how each fault is done: signals, rules of the sandbox servers, cuts on the way to PostgreSQL
proxy.py       that way to PostgreSQL
nursery.py     processes by `fork`
town.py        servers, mailboxes on six routes, and the fleet
wave.py        many cells at once, from enqueue to verdict
machines.py    what befalls Redis, PostgreSQL and whole processes
chaos.py       `make chaos`: all of it, again and again
"""
