# One image for every part: Airflow's processes, `aso`, and the sandbox's sites and FTS.
FROM apache/airflow:3.3.2

COPY --chown=airflow:root requirements.txt /opt/asyncstageout/
RUN uv pip install --no-cache --compile-bytecode -r /opt/asyncstageout/requirements.txt

COPY --chown=airflow:root pyproject.toml README.md LICENSE /opt/asyncstageout/
COPY --chown=airflow:root include /opt/asyncstageout/include
COPY --chown=airflow:root runbooks /opt/asyncstageout/runbooks
RUN uv pip install --no-cache --compile-bytecode --no-deps /opt/asyncstageout

COPY --chown=airflow:root dags /opt/airflow/dags
COPY --chown=airflow:root plugins /opt/airflow/plugins
