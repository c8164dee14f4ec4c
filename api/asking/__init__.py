"""Questions: parameters, ranges, buckets and pages."""
