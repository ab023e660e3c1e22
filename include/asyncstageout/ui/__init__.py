"""The operators' room: pages as HTML, made here and complete without a script. Knows nothing of Airflow."""
