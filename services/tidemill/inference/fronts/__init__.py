"""Further processes that answer requests on the service's ports.

One process, the first, owns everything: which models are served, their state, their sequences, their books. The others
hold copies of the models that are small and without state, answer requests for those by themselves, and pass all else
on to the first, over a socket that nobody else can reach.
"""
