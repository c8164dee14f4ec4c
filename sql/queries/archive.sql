-- name: add_events
-- Leave the accepted events of a flush for the archiver. The compare-and-set of the flush
-- came first, so no event is left twice.
INSERT INTO analytics.archive_outbox
    (partition, accepted_from, row_count, byte_count, complete_from, complete_to, flushed_at, events)
VALUES (%(partition)s, %(accepted_from)s, %(row_count)s, %(byte_count)s, %(complete_from)s, %(complete_to)s,
    now(), %(events)s)

-- name: outbox
-- How many rows, events and bytes wait in the outbox of each partition, and the age of the
-- oldest row in seconds.
SELECT partition, count(*), sum(row_count)::bigint, sum(byte_count)::bigint,
    EXTRACT(EPOCH FROM now() - min(flushed_at))::float8
FROM analytics.archive_outbox GROUP BY partition ORDER BY partition

-- name: lock
-- Let one archiver at a time work on a partition. The session holds the lock, so the lock ends
-- with the process.
SELECT pg_try_advisory_lock(hashtext('analytics.archive_outbox'), %(partition)s)

-- name: unlock
-- Let the next archiver work on the partition.
SELECT pg_advisory_unlock(hashtext('analytics.archive_outbox'), %(partition)s)

-- name: waiting
-- The outbox rows of a partition in the order of their events, without the events themselves.
SELECT accepted_from, row_count, byte_count, cut FROM analytics.archive_outbox
WHERE partition = %(partition)s ORDER BY accepted_from

-- name: settle_cut
-- Settle which rows become the next files, before any file is uploaded. So a repeat makes the same files.
UPDATE analytics.archive_outbox SET cut = %(cut)s
WHERE partition = %(partition)s AND accepted_from < %(cut)s

-- name: take_cut
-- The rows of a cut with their events.
SELECT accepted_from, complete_from, complete_to, events FROM analytics.archive_outbox
WHERE partition = %(partition)s AND cut = %(cut)s ORDER BY accepted_from

-- name: list_file
-- Enter an uploaded file into the manifest.
INSERT INTO analytics.archive_files
    (partition, accepted_from, hour, accepted_to, path, from_offset, to_offset, row_count, byte_count, sha256,
    archived_at)
VALUES (%(partition)s, %(accepted_from)s, %(hour)s, %(accepted_to)s, %(path)s, %(from_offset)s, %(to_offset)s,
    %(row_count)s, %(byte_count)s, %(sha256)s, now())

-- name: drop_cut
-- Take the rows of a cut from the outbox, in the transaction that lists the files with their events.
DELETE FROM analytics.archive_outbox WHERE partition = %(partition)s AND cut = %(cut)s

-- name: widen_span
-- Widen the partition's last span by a cut that begins where the span ends.
UPDATE analytics.archive_spans SET accepted_to = %(accepted_to)s, complete_to = %(complete_to)s
WHERE partition = %(partition)s AND accepted_to = %(accepted_from)s

-- name: begin_span
-- Begin a new span: for the first cut of a partition, or for a cut after a hole.
INSERT INTO analytics.archive_spans (partition, accepted_from, accepted_to, complete_from, complete_to)
VALUES (%(partition)s, %(accepted_from)s, %(accepted_to)s, %(complete_from)s, %(complete_to)s)

-- name: raise_epoch
-- Make the workers that own these partitions load their rows again, because a rebuild has changed the rows.
UPDATE analytics.partitions SET epoch = epoch + 1, updated_at = now() WHERE partition = ANY(%(partitions)s)

-- name: partitions
-- All partitions, with the number of accepted events and the start of the archive in microseconds.
SELECT partition, accepted, (EXTRACT(EPOCH FROM archive_from) * 1000000)::bigint
FROM analytics.partitions ORDER BY partition

-- name: raise_floor
-- Mark the hours before a time as no longer complete in the archive, because their files
-- are about to be deleted.
UPDATE analytics.partitions SET archive_from = %(before)s
WHERE (archive_from IS NULL OR archive_from < %(before)s)
    AND EXISTS (SELECT FROM analytics.archive_files WHERE hour < %(before)s)

-- name: expired_files
-- Some of the files past their retention, the oldest first.
SELECT path FROM analytics.archive_files WHERE hour < %(before)s ORDER BY hour LIMIT %(most)s

-- name: forget_files
-- Take deleted files from the manifest.
DELETE FROM analytics.archive_files WHERE path = ANY(%(paths)s)

-- name: forget_spans
-- Drop the spans that end before a time, except the last span of each partition, which goes on growing.
DELETE FROM analytics.archive_spans AS s WHERE complete_to < %(before)s
    AND EXISTS (SELECT FROM analytics.archive_spans AS later
        WHERE later.partition = s.partition AND later.accepted_from > s.accepted_from)

-- name: time
-- The database's clock.
SELECT now()

-- name: spans
-- The pieces of the archive of each partition: the spans of its files, then the rows of the outbox.
SELECT partition, accepted_from, accepted_to, complete_from, complete_to FROM analytics.archive_spans
UNION ALL
SELECT partition, accepted_from, accepted_from + row_count, complete_from, complete_to
FROM analytics.archive_outbox
ORDER BY partition, accepted_from

-- name: files
-- The listed files of some hours of a partition.
SELECT path, hour, row_count, sha256 FROM analytics.archive_files
WHERE partition = %(partition)s AND hour >= %(start)s AND hour < %(end)s ORDER BY hour, accepted_from

-- name: outbox_events
-- The events of a partition that still wait in the outbox.
SELECT events FROM analytics.archive_outbox WHERE partition = %(partition)s ORDER BY accepted_from

-- name: days
-- The days (since 1970) for which a partition has rows in a table.
SELECT DISTINCT floor(EXTRACT(EPOCH FROM {time}) / 86400)::bigint FROM analytics.{table}
WHERE partition = %(partition)s AND {time} >= %(start)s AND {time} < %(end)s

-- name: unknown_partitions
-- Partition numbers that stand in rollup rows but not among the known partitions.
SELECT DISTINCT partition FROM analytics.{table}
WHERE bucket_start >= %(start)s AND bucket_start < %(end)s AND NOT partition = ANY(%(known)s)

-- name: rollup_rows
-- The rollup rows of a partition in some buckets, of one org if an org is given.
SELECT uuid_send(org_id), (EXTRACT(EPOCH FROM bucket_start) * 1000000)::bigint, uuid_send(model_id), rate_class, {columns}
FROM analytics.{table}
WHERE bucket_start >= %(start)s AND bucket_start < %(end)s AND partition = %(partition)s
    AND (%(org)s::uuid IS NULL OR org_id = %(org)s)

-- name: delete_row
-- Delete a rollup row to which no archived event belongs.
DELETE FROM analytics.{table}
WHERE org_id = %s AND bucket_start = %s AND model_id = %s AND rate_class = %s AND partition = %s{more}

-- name: audit
-- Record the changes of a rebuild, in the transaction that makes them.
INSERT INTO analytics.audit_log (at, actor, action, outcome, detail)
VALUES (now(), %(actor)s, 'archive.rebuild', 'repaired', %(detail)s)
