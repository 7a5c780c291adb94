"""Inlining: the modules that a design uses, as one program with its constants put in.

`record` builds the model on the meta device and notes every constructor call; `groups` decides
which instances share a class; `specialise` copies the classes from their sources (`library`), one
for each group; `facts` adds what the built model says of their attributes. Then, until nothing
changes: `simplify` evaluates each function by what its `scope` knows (`fold`, `branches`,
`aliases`), `signatures` settles parameters over all calls (`families`, `narrow`), and `prune` takes
away what nobody reads. `inline` runs this; `layout` formats the text.
"""
