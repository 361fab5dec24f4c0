"""A user's own code behind a door: a reward, a data adapter, a token mode, an objective or a figure.

A choice is a built-in name, `FILE.py:NAME` (a path relative to the configuration file) or `package.module:NAME` (an
installed module). It is handled in three places:

    locate     when the configuration is read: finds the file, checks name and arguments in its syntax tree, hashes it.
               Nothing is imported.
    load       in a job, in each process that needs it: refuses a file that has changed since, then imports it.
    blaming    around every call: turns whatever the code raises into one line that names file and line.

A `Reference` is part of the spec, so an edited file gives another result. What the file imports is not hashed.
"""

from softtok.plugins.loading import Plugin, blame, blaming, load, load_class, number, read, shown
from softtok.plugins.locating import Arguments, Door, Form, Reference, is_plugin, locate

__all__ = [
    "Arguments",
    "Door",
    "Form",
    "Plugin",
    "Reference",
    "blame",
    "blaming",
    "is_plugin",
    "load",
    "load_class",
    "locate",
    "number",
    "read",
    "shown",
]
