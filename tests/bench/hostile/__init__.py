"""Hostile clients beside honest ones: how long small POSTs wait, and what the daemon holds.

One process sends the worst allowed requests of one kind, another measures small POSTs.
"""
