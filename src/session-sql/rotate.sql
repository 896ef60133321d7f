-- Another secret: a new password for every role that pgjot logs in as, and a new key for identities on standbys, all at once.
--
-- Runs in one transaction, under live sessions, and may be run again. rotation.ts provides the setting
--
--   pgjot_rotate.version   the version of the SQL objects that it knows
--   pgjot_rotate.forget    'true' to keep no previous identity key
--
-- and in the temporary table pgjot_secret, by COPY, so that no log ever holds them,
--
--   verifier <role's name in hexadecimal>   its SCRAM verifier
--   inner_block, outer_block                the identity key as pgjot.identity_key has it, where standbys serve clients
--
-- Who is logged in stays so; PostgreSQL asks for a password only once.

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '1s';
DO $$ BEGIN PERFORM set_config('pgjot_rotate.admin', current_user, true); END $$;

-- Ends the sessions of a slot. Its user holds a lock on the role, by ALTER ROLE in a transaction that is left open, and so
-- could keep everybody's secret from being rotated.
CREATE OR REPLACE FUNCTION pg_temp.end_sessions_of(p_login oid) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
  ended int4;
BEGIN
  SET LOCAL ROLE pgjot_owner;
  PERFORM pg_stat_clear_snapshot();
  SELECT count(pg_terminate_backend(a.pid, 5000)) INTO ended FROM pg_stat_get_activity(NULL) a
   WHERE a.usesysid = p_login AND a.backend_type = 'client backend';
  PERFORM set_config('role', current_setting('pgjot_rotate.admin'), true);
  RETURN ended;
END
$$;

DO $installed$
DECLARE
  installed constant int4 := (
    SELECT substring(pg_get_function_sqlbody(p.oid), '\d{1,9}')::int4
      FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace AND n.nspowner = to_regrole('pgjot_owner')
     WHERE n.nspname = 'pgjot' AND p.proname = 'version' AND p.pronargs = 0);
BEGIN
  IF installed IS DISTINCT FROM current_setting('pgjot_rotate.version')::int4 THEN
    RAISE EXCEPTION 'pgjot: version % of the session functions is installed, not version % of this program',
      coalesce(installed::text, 'none'), current_setting('pgjot_rotate.version') USING ERRCODE = '55000',
      HINT = 'Run pgjot setup first, with the secret that the server has now.';
  END IF;
END
$installed$;

GRANT pgjot_owner TO CURRENT_USER;
GRANT SELECT ON pg_temp.pgjot_secret TO pgjot_owner;

DO $passwords$
DECLARE
  one     record;
  changed int4 := 0;
  slots   int4 := 0;
  done    bool;
BEGIN
  FOR one IN
    SELECT r.rolname, r.oid, s.value AS verifier
      FROM pg_roles r
      JOIN pg_auth_members m ON m.roleid = r.oid AND m.member = 'pgjot_owner'::regrole
      LEFT JOIN pg_temp.pgjot_secret s ON s.name = 'verifier ' || encode(convert_to(r.rolname, 'UTF8'), 'hex')
     WHERE r.rolname IN ('pgjot_control', 'pgjot_lookup') OR r.rolname ~ '^pgjot_.+_\d+$'
     GROUP BY 1, 2, 3
     ORDER BY r.rolname
  LOOP
    IF one.verifier IS NULL THEN
      RAISE EXCEPTION 'pgjot: role "%" has been made meanwhile', one.rolname USING ERRCODE = '55000', HINT = 'Run this again.';
    END IF;
    done := false;
    FOR attempt IN 1 .. 5 LOOP
      BEGIN
        EXECUTE format('ALTER ROLE %I PASSWORD %L', one.rolname, one.verifier);
        done := true;
        EXIT;
      EXCEPTION
        WHEN lock_not_available THEN
          RAISE INFO 'ended % session of "%", whose user held a lock on that role', pg_temp.end_sessions_of(one.oid), one.rolname;
        WHEN internal_error THEN
          NULL;      -- "tuple concurrently updated": its user has changed the role in this very moment
      END;
    END LOOP;
    IF NOT done THEN
      RAISE EXCEPTION 'pgjot: role "%" is changed by its user again and again', one.rolname USING ERRCODE = '55006',
        HINT = 'Run this again, or REVOKE CONNECT ON DATABASE from its group for that time.';
    END IF;
    changed := changed + 1;
    slots := slots + (one.rolname NOT IN ('pgjot_control', 'pgjot_lookup'))::int4;
  END LOOP;
  RAISE INFO 'set the passwords of % slots and of % other roles', slots, changed - slots;
END
$passwords$;

DO $key$
DECLARE
  new_inner constant bytea := (SELECT decode(value, 'hex') FROM pg_temp.pgjot_secret WHERE name = 'inner_block');
  new_outer constant bytea := (SELECT decode(value, 'hex') FROM pg_temp.pgjot_secret WHERE name = 'outer_block');
BEGIN
  SET LOCAL ROLE pgjot_owner;
  IF new_inner IS NOT NULL AND NOT EXISTS (SELECT FROM pgjot.identity_key k WHERE k.current AND k.inner_block = new_inner) THEN
    DELETE FROM pgjot.identity_key k WHERE NOT k.current;
    UPDATE pgjot.identity_key SET current = false;
    INSERT INTO pgjot.identity_key (inner_block, outer_block, current) VALUES (new_inner, new_outer, true);
    RAISE INFO 'gave standbys the new identity key';
  END IF;
  IF current_setting('pgjot_rotate.forget')::bool THEN
    DELETE FROM pgjot.identity_key k WHERE NOT k.current;
    IF FOUND THEN
      RAISE INFO 'forgot the previous identity key';
    END IF;
  ELSIF EXISTS (SELECT FROM pgjot.identity_key k WHERE NOT k.current) THEN
    RAISE INFO 'the previous identity key still holds on standbys';
  END IF;
  PERFORM set_config('role', current_setting('pgjot_rotate.admin'), true);
END
$key$;

DROP FUNCTION pg_temp.end_sessions_of(oid);
REVOKE pgjot_owner FROM CURRENT_USER;
