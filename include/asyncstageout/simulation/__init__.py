"""What this service would do under a load that nobody has yet: sites, links, FTS and ourselves, on paper.

Files are amounts that flow; what the service does with them (cycles, watches, tasks of Airflow) are events
with a beginning and an end. Nothing here reads a clock or a file: the same scenario, deployment, calibration
and seed are the same day.
"""
