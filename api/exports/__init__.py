"""Exports: figures of an org as a file, made by a job that outlives its worker.

`routes` takes orders and hands out links; `jobs` is the job as a row and an answer; `runner` claims jobs and
makes their files, in a thread of the API or as a process of its own; `files` streams one snapshot into one
format; `stores` are where files go. Only `routes` knows HTTP.
"""
