"""Exports: figures of an org as a file, made by a job that another process finishes if its own dies.

`routes` takes orders and hands out links. `jobs` has the job, as a row and as an answer. `runner` claims jobs
and makes their files, in a thread of the API or as a process of its own. `files` streams one snapshot into
one format. `stores` has the places where files go. Only `routes` knows HTTP.
"""
