"""Secure aggregation over the network: the server merges a sum of updates that it never saw one by one.

A client trains first, and says that it is ready; its update stays with it, as whole numbers. Those that are ready are the
cohort of one secure sum (:mod:`fedloom.privacy.secagg`), whose five steps go over the seam as tasks and uploads:

    part       a client's side: what it insists on before anything of its update leaves it, under masks
    transcript the server's side: every message is on disk before it counts, so that a killed server goes on
    exchange   gives the steps out, and waits for those that answer
    engine     what the round loop calls
    legs       one message of one step, as a task and as an upload
    journal    the file
"""
