-- The roles of a new database. The container's first start runs this file as the superuser, before `spendstream migrate`.
-- Passwords are read from the secrets' files.

\if :{?secrets} \else \set secrets /run/secrets \endif
\setenv SECRETS :secrets
\set owner_password `cat "$SECRETS/database_owner_password"`
\set api_password `cat "$SECRETS/database_api_password"`
\set collector_password `cat "$SECRETS/database_collector_password"`
\set alerts_password `cat "$SECRETS/database_alerts_password"`
\set grafana_password `cat "$SECRETS/database_grafana_password"`

-- What `spendstream migrate` grants rights to. None of these can log in.
CREATE ROLE spendstream_reader NOLOGIN;
CREATE ROLE spendstream_pricer NOLOGIN;
CREATE ROLE spendstream_adjuster NOLOGIN;
CREATE ROLE spendstream_namer NOLOGIN;
CREATE ROLE spendstream_collector NOLOGIN;
CREATE ROLE spendstream_alerter NOLOGIN;
CREATE ROLE spendstream_bi NOLOGIN;

-- The owner of the schema: migrate and worker. CREATEROLE is for the roles of later versions.
CREATE ROLE spendstream LOGIN CREATEROLE PASSWORD :'owner_password';
ALTER DATABASE :"DBNAME" OWNER TO spendstream;

-- The API and the exporter read. To change prices, adjustments and names over REST, grant spendstream_api the roles
-- spendstream_pricer, spendstream_adjuster and spendstream_namer as well.
CREATE ROLE spendstream_api LOGIN PASSWORD :'api_password' IN ROLE spendstream_reader;
CREATE ROLE spendstream_collector_login LOGIN PASSWORD :'collector_password' IN ROLE spendstream_collector;
CREATE ROLE spendstream_alerts_login LOGIN PASSWORD :'alerts_password' IN ROLE spendstream_alerter;
CREATE ROLE spendstream_grafana LOGIN PASSWORD :'grafana_password' IN ROLE spendstream_bi;
ALTER ROLE spendstream_grafana SET jit = off;
ALTER ROLE spendstream_grafana SET statement_timeout = '30s';
