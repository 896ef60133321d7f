-- The SQL API that policies use, the same in every session mode: thin wrappers in schema auth.
--
-- Runs after portable.sql, in the same transaction and with its settings. Where somebody else's schema
-- auth, or function in it, is there already (Supabase, pg_session_jwt), it stays as it is and a WARNING
-- says so: policies can name pgjot.user_id() and its sisters instead.
--
--   auth.user_id()  text   sub                        auth.session()  jsonb  all claims
--   auth.uid()      uuid   sub where it is one        auth.jwt()      jsonb  the same
--
-- No identity is NULL, and NULL equals nothing: no rows.

GRANT pgjot_owner TO CURRENT_USER;
CREATE SCHEMA IF NOT EXISTS auth AUTHORIZATION pgjot_owner;

DO $auth$
DECLARE
  admin    constant name := current_setting('pgjot_install.admin');
  foreign_ constant bool := (SELECT nspowner <> 'pgjot_owner'::regrole FROM pg_namespace WHERE nspname = 'auth');
  wrapper  record;
  grantee  name;
BEGIN
  IF foreign_ THEN
    IF NOT has_schema_privilege(admin, 'auth', 'CREATE WITH GRANT OPTION')
       OR NOT has_schema_privilege(admin, 'auth', 'USAGE WITH GRANT OPTION') THEN
      RAISE WARNING 'pgjot: schema "auth" belongs to another role and stays as it is; use pgjot.user_id() in policies';
      RETURN;
    END IF;
    GRANT CREATE, USAGE ON SCHEMA auth TO pgjot_owner;
  ELSE
    SET LOCAL ROLE pgjot_owner;
  END IF;
  FOR grantee IN SELECT role FROM pgjot.slot_group UNION SELECT admin LOOP
    EXECUTE format('GRANT USAGE ON SCHEMA auth TO %I', grantee);
  END LOOP;
  EXECUTE format('GRANT USAGE ON SCHEMA auth TO %I WITH GRANT OPTION', admin);

  SET LOCAL ROLE pgjot_owner;
  -- The extension believes a setting that any client can set, where no proxy of its mode has given the session a key.
  IF EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_session_jwt') THEN
    IF EXISTS (SELECT FROM pg_depend d
                 JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid AND p.pronamespace = 'auth'::regnamespace
                WHERE d.classid = 'pg_policy'::regclass AND p.proowner <> 'pgjot_owner'::regrole) THEN
      RAISE EXCEPTION 'pgjot: policies name functions of the extension pg_session_jwt, which any client of session mode "portable" can forge'
        USING ERRCODE = '55000', HINT = 'Let them name pgjot.user_id() and its sisters, or use "session": "pg_session_jwt".';
    END IF;
    RAISE WARNING 'pgjot: auth.user_id() and its sisters belong to the extension pg_session_jwt: any client can forge what they say';
  END IF;
  FOR wrapper IN
    SELECT w.name, w.type
      FROM (VALUES ('user_id', 'text'), ('uid', 'uuid'), ('session', 'jsonb'), ('jwt', 'jsonb')) AS w (name, type)
  LOOP
    IF EXISTS (SELECT FROM pg_proc p
                WHERE p.pronamespace = 'auth'::regnamespace AND p.proname = wrapper.name AND p.pronargs = 0
                  AND p.proowner <> 'pgjot_owner'::regrole) THEN
      RAISE WARNING 'pgjot: function auth.%() belongs to another role and stays as it is; use pgjot.%() in policies',
        wrapper.name, wrapper.name;
      CONTINUE;
    END IF;
    EXECUTE format('CREATE OR REPLACE FUNCTION auth.%1$I() RETURNS %2$s'
                   ' LANGUAGE sql STABLE PARALLEL RESTRICTED RETURN pgjot.%1$I()', wrapper.name, wrapper.type);
    EXECUTE format('REVOKE ALL ON FUNCTION auth.%I() FROM PUBLIC', wrapper.name);
    FOR grantee IN SELECT role FROM pgjot.slot_group LOOP
      EXECUTE format('GRANT EXECUTE ON FUNCTION auth.%I() TO %I', wrapper.name, grantee);
    END LOOP;
    EXECUTE format('GRANT EXECUTE ON FUNCTION auth.%I() TO %I WITH GRANT OPTION', wrapper.name, admin);
  END LOOP;

  PERFORM set_config('role', admin, true);
  IF foreign_ THEN
    REVOKE CREATE ON SCHEMA auth FROM pgjot_owner;
  END IF;
END
$auth$;

REVOKE pgjot_owner FROM CURRENT_USER;
