"""The REST API: ``app`` puts it together; each module beside it exposes a ``router``.

``callers`` gives routes who asks (:class:`asyncstageout.core.callers.Caller`) and the catalogue, ``problems``
the errors of RFC 9457. Nothing here knows Airflow: ``provider/web.py`` brings its authentication.
"""
