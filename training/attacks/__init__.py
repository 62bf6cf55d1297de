"""Attacks on a network: their names, the one loop that makes them, what is climbed, who climbs it."""
