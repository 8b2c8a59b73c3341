"""Clients of many forms: the cost of a POST that is not a plain one on a kept-alive connection."""
