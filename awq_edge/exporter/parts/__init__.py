"""The parts of a decoder as canonical nodes, one concept a file. docs/graph.md specifies them.

Every function takes a `Building`, appends nodes to its graph and returns the tensor they end in.
"""
