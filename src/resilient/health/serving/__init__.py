"""How health is asked for from outside: what a request gets to see, in which form, over what."""
