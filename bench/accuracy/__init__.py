"""How true the engines' figures are, held against what passed on a link whose rate is known: `make bench-accuracy`.

A client, a router and a server are network namespaces of their own. The router shapes both directions, a program between
router and server gives the link its delay and its loss, and what arrives is counted at the receiving interface.
"""
