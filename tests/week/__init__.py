"""``make week``: a week of the service's life on a fast clock. Everything is real but time.

Postgres, FTS, DBS, sites with files on disk and a receiver of messages run in processes of their own; the house's
own steps run one after the other, as its DAGs would start them. What is not there is Airflow, which has its own
tests (``make chaos``, ``tests/end_to_end``).

**The clock jumps.** It runs as every clock does, and between two ticks of the week it is put forward, for everybody
at once: for the steps (``time_machine``), for SQL (functions of our own before ``pg_catalog``'s in the
``search_path``: all defaults and statements of the catalogue say ``now()`` without a schema), for the servers
(their clock is a parameter). Two other ways were left:

- scaling all waiting times down: 18,800 s for a block, 7 days for a temporary copy and 20 attempts in 10 minutes
  would not be what the house is run with, some of them are no settings at all, and what takes a second of work
  would take ten minutes of the week;
- moving the timestamps of rows back: every tick would write all tables, those that refuse it too, and the work
  that was under way at that moment would not age.

With jumps, a slow machine changes how long the week takes, and nothing else: FTS has done what it can before the
clock goes on. What happens within one tick is as real, and as racy, as ever.
"""
