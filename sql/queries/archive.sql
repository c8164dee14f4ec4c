-- name: add_events
-- Leave the accepted events of a flush for the archiver; the compare-and-set before it lets none in twice.
INSERT INTO analytics.archive_outbox
    (partition, accepted_from, row_count, byte_count, complete_from, complete_to, flushed_at, events)
VALUES (%(partition)s, %(accepted_from)s, %(row_count)s, %(byte_count)s, %(complete_from)s, %(complete_to)s,
    now(), %(events)s)

-- name: outbox
-- How much waits, by partition, with the age of the oldest in seconds.
SELECT partition, count(*), sum(row_count)::bigint, sum(byte_count)::bigint,
    EXTRACT(EPOCH FROM now() - min(flushed_at))::float8
FROM analytics.archive_outbox GROUP BY partition ORDER BY partition

-- name: lock
-- One archiver at a time works on a partition. Kept by the session, so that it ends with the process.
SELECT pg_try_advisory_lock(hashtext('analytics.archive_outbox'), %(partition)s)

-- name: unlock
-- Let the next archiver in.
SELECT pg_advisory_unlock(hashtext('analytics.archive_outbox'), %(partition)s)

-- name: waiting
-- A partition's rows in the order of its events, without the events themselves.
SELECT accepted_from, row_count, byte_count, cut FROM analytics.archive_outbox
WHERE partition = %(partition)s ORDER BY accepted_from

-- name: settle_cut
-- Say which rows become the next files, before any is uploaded: a repeat makes the very same files.
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
-- Its events are in listed files now: the same transaction takes them from the outbox.
DELETE FROM analytics.archive_outbox WHERE partition = %(partition)s AND cut = %(cut)s

-- name: widen_span
-- What the files hold without a hole reaches further.
UPDATE analytics.archive_spans SET accepted_to = %(accepted_to)s, complete_to = %(complete_to)s
WHERE partition = %(partition)s AND accepted_to = %(accepted_from)s

-- name: begin_span
-- After a hole, or at the beginning.
INSERT INTO analytics.archive_spans (partition, accepted_from, accepted_to, complete_from, complete_to)
VALUES (%(partition)s, %(accepted_from)s, %(accepted_to)s, %(complete_from)s, %(complete_to)s)

-- name: raise_epoch
-- Whoever holds these partitions reads its rows anew: what it has in memory was loaded before the rebuild.
UPDATE analytics.partitions SET epoch = epoch + 1, updated_at = now() WHERE partition = ANY(%(partitions)s)

-- name: partitions
-- Which partitions there are, how many events each has accepted, and where its archive begins, in microseconds.
SELECT partition, accepted, (EXTRACT(EPOCH FROM archive_from) * 1000000)::bigint
FROM analytics.partitions ORDER BY partition

-- name: raise_floor
-- From now on nobody takes the archive of the hours before for whole: their files are about to go.
UPDATE analytics.partitions SET archive_from = %(before)s
WHERE (archive_from IS NULL OR archive_from < %(before)s)
    AND EXISTS (SELECT FROM analytics.archive_files WHERE hour < %(before)s)

-- name: expired_files
-- Some of the files past their retention, the oldest first.
SELECT path FROM analytics.archive_files WHERE hour < %(before)s ORDER BY hour LIMIT %(most)s

-- name: forget_files
-- Files that are gone from the archive are no longer listed.
DELETE FROM analytics.archive_files WHERE path = ANY(%(paths)s)

-- name: forget_spans
-- Holes of before need no longer be known; the last span of a partition is the one that grows.
DELETE FROM analytics.archive_spans AS s WHERE complete_to < %(before)s
    AND EXISTS (SELECT FROM analytics.archive_spans AS later
        WHERE later.partition = s.partition AND later.accepted_from > s.accepted_from)

-- name: time
-- The database's clock.
SELECT now()

-- name: spans
-- What the archive holds of each partition: by its files, then by the outbox.
SELECT partition, accepted_from, accepted_to, complete_from, complete_to FROM analytics.archive_spans
UNION ALL
SELECT partition, accepted_from, accepted_from + row_count, complete_from, complete_to
FROM analytics.archive_outbox
ORDER BY partition, accepted_from

-- name: files
-- The files of some hours of a partition.
SELECT path, hour, row_count, sha256 FROM analytics.archive_files
WHERE partition = %(partition)s AND hour >= %(start)s AND hour < %(end)s ORDER BY hour, accepted_from

-- name: outbox_events
-- All events of a partition that are in no file yet.
SELECT events FROM analytics.archive_outbox WHERE partition = %(partition)s ORDER BY accepted_from

-- name: days
-- The days, as days since 1970, in which a partition has anything.
SELECT DISTINCT floor(EXTRACT(EPOCH FROM {time}) / 86400)::bigint FROM analytics.{table}
WHERE partition = %(partition)s AND {time} >= %(start)s AND {time} < %(end)s

-- name: unknown_partitions
-- Partitions that rollup rows name and that there are not.
SELECT DISTINCT partition FROM analytics.{table}
WHERE bucket_start >= %(start)s AND bucket_start < %(end)s AND NOT partition = ANY(%(known)s)

-- name: rollup_rows
-- The rows of a partition in some buckets, optionally of one org.
SELECT uuid_send(org_id), (EXTRACT(EPOCH FROM bucket_start) * 1000000)::bigint, uuid_send(model_id), {columns}
FROM analytics.{table}
WHERE bucket_start >= %(start)s AND bucket_start < %(end)s AND partition = %(partition)s
    AND (%(org)s::uuid IS NULL OR org_id = %(org)s)

-- name: delete_row
-- Take away a row that no event accounts for.
DELETE FROM analytics.{table}
WHERE org_id = %s AND bucket_start = %s AND model_id = %s AND partition = %s{more}

-- name: audit
-- What a rebuild changed, in the transaction that changes it.
INSERT INTO analytics.audit_log (at, actor, action, outcome, detail)
VALUES (now(), %(actor)s, 'archive.rebuild', 'repaired', %(detail)s)
