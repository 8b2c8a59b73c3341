"""Hostile clients and honest ones: answer times of small POSTs, and the daemon's memory.

One process sends the worst allowed requests of one kind, another measures small POSTs.
"""
