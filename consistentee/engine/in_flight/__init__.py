"""The engine that regroups: more rows under way than a batch holds, so that every layer runs on a full one.

``slots.py`` and ``window.py`` hold the keys and values of rows that do not go in step, ``texts.py`` what they write;
``waiting.py`` says which of them run next, and ``regroup.py`` lets them.
"""
