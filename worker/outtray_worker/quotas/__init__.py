"""Quota and pace: how much a mailbox may send in 24 hours, and how fast.

check.py     what turns ask
ledger.py    the daily limits, read from PostgreSQL
buckets.py   what is asked of a bucket, and what it answers
pace.py      the buckets, in Redis
fallback.py  what stands in for them while Redis is away
usage.py     what PostgreSQL tells the buckets
learn.py     what a provider's refusal teaches
units.py     what a handover costs where a provider counts in units
budgets.py   limits that several mailboxes share
tokens.py    what one turn holds of its buckets
"""
