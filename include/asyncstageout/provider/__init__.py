"""Airflow manners: hook, operators, sensor, trigger, link and connection form."""
