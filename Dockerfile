# One image for every part: Airflow's processes, `aso`, and the sandbox's sites and FTS.
# The slim image has Airflow and its tools, but hardly a provider: all that we run comes from our locks.
ARG AIRFLOW_IMAGE=apache/airflow:slim-3.3.2-python3.13
FROM ${AIRFLOW_IMAGE}

# Celery, redis, statsd, and our extras for Parquet, Rucio and root://. For a LocalExecutor without them:
# --build-arg REQUIREMENTS=requirements.txt
ARG REQUIREMENTS="requirements.txt requirements-production.txt"
WORKDIR /opt/asyncstageout
COPY --chown=airflow:root requirements.txt requirements-production.txt ./
RUN pip install --no-cache-dir $(printf -- "-r %s " ${REQUIREMENTS})

COPY --chown=airflow:root pyproject.toml README.md LICENSE ./
COPY --chown=airflow:root include include
COPY --chown=airflow:root runbooks runbooks
RUN pip install --no-cache-dir --no-deps .
# Workers and DAG processors import once what all that they fork needs.
RUN mkdir -p /opt/airflow/config && cp include/asyncstageout/provider/local_settings.py /opt/airflow/config/airflow_local_settings.py

COPY --chown=airflow:root dags /opt/airflow/dags
COPY --chown=airflow:root plugins /opt/airflow/plugins
WORKDIR /opt/airflow
