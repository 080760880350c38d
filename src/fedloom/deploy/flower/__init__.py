"""A run over Flower: the same server and the same client, on a SuperLink and SuperNodes that are there already.

Flower starts a process for every message, so that nothing stays loaded: what a client needs lies on its disk, and every
message carries one task. What is asked and what is answered are the messages of :mod:`fedloom.deploy.protocol.messages`.

    hello   -> who this node is, with its key and the shape of its samples
    terms   -> whether its owner has agreed to this run
    task    -> the answer to any task, whatever its kind
"""
