"""Dashboard: runs in a browser, live and past; nothing of it leaves this machine but what the page shows.

A :class:`~fedloom.dashboard.sources.Source` is a run, as facts; a :class:`~fedloom.dashboard.sources.Board` is all runs of
one page; :func:`~fedloom.dashboard.app.make` makes an ASGI app of a board, and
:class:`~fedloom.dashboard.server.Background` serves it in a thread.
"""
