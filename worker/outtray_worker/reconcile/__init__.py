"""Reconcile: look for evidence about handovers without an outcome (protocol, rules 7, 11, 12 and 13).

    plan      what wants looks gets its first time                         the dispatcher, each second
    pick      due looks are published, or picked by a worker itself        ids of messages, nothing else
    read      the message and its mailbox as they stand: the look begins   no lock, no lease, no transaction stays open
    look      the provider is asked, with a deadline                       never sends
    decide    what the finding proves, about this message, by now          a pure function
    write     one transaction, on the locked row

Duplicate, late and invented hints are harmless: what is written depends on the row as it stands, and on the handover
that was looked at. Findings and their limits: docs/evidence.md.
"""
