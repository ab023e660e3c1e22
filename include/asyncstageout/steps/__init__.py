"""What one task does: ``run(collaborators...) -> Summary``. No Airflow in here."""
