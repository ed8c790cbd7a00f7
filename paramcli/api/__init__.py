"""The commands as functions: what `paramcli add` does is `paramcli.add(...)`, with the same options by the same names.

Each opens what it is given, works, and returns a frozen result whose `document()` is the JSON that the command prints.
`watch` is told how far it is; without one nothing is printed. Nothing here needs torch before there is something to
compute.
"""
