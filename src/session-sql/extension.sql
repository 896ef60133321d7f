-- Session mode "pg_session_jwt": the identity is a token in the StartupMessage, which the extension of that name verifies.
--
-- Runs after portable.sql, whose roles and slots this mode uses as well, in the same transaction and with its settings,
-- and in the place of auth.sql: here auth.user_id(), auth.session() and so on are the extension's own functions, and
-- pgjot.user_id() and its sisters read through it.
--
-- https://github.com/neondatabase/pg_session_jwt

DO $extension$
DECLARE
  admin     constant name := current_setting('pgjot_install.admin');
  oldest    constant int4[] := '{0,4,0}';      -- the first with auth.uid() and auth.jwt()
  installed text;
  wrapper   regprocedure;
  grantee   name;
BEGIN
  SELECT extversion INTO installed FROM pg_extension WHERE extname = 'pg_session_jwt';
  IF installed IS NULL THEN
    IF NOT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_session_jwt') THEN
      RAISE EXCEPTION 'pgjot: this server does not have the extension pg_session_jwt' USING ERRCODE = '0A000',
        HINT = 'Install its package there, or use "session": "portable", which needs no extension.';
    END IF;
    -- It makes schema auth and takes none that is there. Ours goes; not by CASCADE, because policies that name its
    -- functions are for people to move.
    IF EXISTS (SELECT FROM pg_namespace WHERE nspname = 'auth' AND nspowner = 'pgjot_owner'::regrole) THEN
      GRANT pgjot_owner TO CURRENT_USER;
      SET LOCAL ROLE pgjot_owner;
      FOR wrapper IN
        SELECT p.oid FROM pg_proc p
         WHERE p.pronamespace = 'auth'::regnamespace AND p.proowner = 'pgjot_owner'::regrole
      LOOP
        EXECUTE format('DROP FUNCTION %s', wrapper);
      END LOOP;
      DROP SCHEMA auth;
      PERFORM set_config('role', admin, true);
      REVOKE pgjot_owner FROM CURRENT_USER;
    END IF;
    CREATE EXTENSION pg_session_jwt;
    SELECT extversion INTO installed FROM pg_extension WHERE extname = 'pg_session_jwt';
    RAISE INFO 'created extension pg_session_jwt, version %', installed;
  END IF;
  IF coalesce(string_to_array(substring(installed, '^\d{1,9}(?:\.\d{1,9})*'), '.')::int4[] < oldest, true) THEN
    RAISE EXCEPTION 'pgjot: extension pg_session_jwt % is too old: % is needed', installed, array_to_string(oldest, '.')
      USING ERRCODE = '0A000', HINT = 'ALTER EXTENSION pg_session_jwt UPDATE;';
  END IF;

  -- Whoever creates the extension, its schema belongs to the superuser who installed PostgreSQL.
  IF NOT has_schema_privilege(admin, 'auth', 'USAGE WITH GRANT OPTION') THEN
    RAISE EXCEPTION 'pgjot: role "%" may not let clients use schema "auth" of the extension', admin USING ERRCODE = '42501',
      HINT = format('As a superuser: CREATE EXTENSION IF NOT EXISTS pg_session_jwt; GRANT USAGE ON SCHEMA auth TO %I WITH GRANT OPTION; then run this again. Where mode "portable" was before, drop its schema auth first.', admin);
  END IF;
  FOR grantee IN SELECT DISTINCT role FROM pg_temp.wanted_slots() LOOP
    IF NOT has_schema_privilege(grantee, 'auth', 'USAGE') THEN
      EXECUTE format('GRANT USAGE ON SCHEMA auth TO %I', grantee);
    END IF;
  END LOOP;
END
$extension$;

GRANT pgjot_owner TO CURRENT_USER;
SET LOCAL ROLE pgjot_owner;

-- Stricter than the extension. Without a key that believes the setting request.jwt.claims, which any client can set;
-- and it looks at "exp" once for each token and backend. Not SECURITY DEFINER: clients may call auth.session() anyway.
CREATE OR REPLACE FUNCTION pgjot.claims() RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY INVOKER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  -- First, because it loads the library: only then is the setting below more than a placeholder that anybody may fill.
  claims constant jsonb := auth.session();
BEGIN
  IF coalesce(current_setting('pg_session_jwt.jwk', true), '') = ''
     OR jsonb_typeof(claims -> 'exp') IS DISTINCT FROM 'number'
     OR (claims ->> 'exp')::float8 <= extract(epoch FROM clock_timestamp()) THEN
    RETURN NULL;
  END IF;
  RETURN claims;
END
$$;

SELECT set_config('role', current_setting('pgjot_install.admin'), true);
REVOKE pgjot_owner FROM CURRENT_USER;
