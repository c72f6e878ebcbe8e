"""Edits over time: facts that are added, replaced and undone, in memory or in a folder.

A stream keeps what facts ask for and checks what goes together; it neither searches (that is
`editing.Engine`) nor solves (the method does, on rankedit's ledger), and it changes no model. Its
folder is a small store; docs/decisions/streams-as-a-store.md says what may be relied on, and why.
"""
