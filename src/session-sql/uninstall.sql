-- Removes what portable.sql and auth.sql installed: schema pgjot, the functions in schema auth, slots, control, owner.
--
-- Stays: the group roles, and everything that belongs to the application, its grants included. Nothing is
-- dropped by CASCADE, because a policy that goes with a function opens or closes a table that nobody looked
-- at: while anything still uses the functions, this refuses and names it. In one transaction, as setup; to
-- be run by the administrator who ran that, or by a superuser. It reads one setting:
--
--   pgjot_install.keep_roles   leave the roles alone, for the other databases that use them

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;

DO $uninstall$
DECLARE
  admin       constant name := current_user;
  here        constant oid  := (SELECT oid FROM pg_database WHERE datname = current_database());
  owner       constant oid  := to_regrole('pgjot_owner');
  control     constant oid  := to_regrole('pgjot_control');
  lookup      constant oid  := to_regrole('pgjot_lookup');
  keeps_roles constant bool := current_setting('pgjot_install.keep_roles')::bool;
  -- Setup marks each of its roles by granting it to pgjot_owner.
  logins      constant oid[] := ARRAY(
    SELECT r.oid FROM pg_roles r
     WHERE r.oid = control
        OR (r.rolname ~ '^pgjot_.*_\d+$' OR r.oid = lookup)
           AND EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = r.oid AND m.member = owner));
  blockers    text;
  installed   constant bool := EXISTS (
    SELECT FROM pg_shdepend s WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = owner AND s.deptype = 'o' AND s.dbid = here);
  one         regrole;
BEGIN
  IF owner IS NULL THEN
    RETURN;
  END IF;

  SELECT count(*) || ' sessions' INTO blockers FROM pg_stat_get_activity(NULL) a
   WHERE a.usesysid = ANY (logins) AND (a.datid = here OR NOT keeps_roles)
  HAVING count(*) > 0;
  IF blockers IS NOT NULL THEN
    RAISE EXCEPTION 'pgjot: % are logged in with the roles to be removed', blockers USING ERRCODE = '55006',
      HINT = 'Stop every proxy of this database first.';
  END IF;

  SELECT string_agg(DISTINCT quote_ident(d.datname), ', ') INTO blockers
    FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid
   WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = ANY (logins || owner) AND s.dbid <> here
  HAVING count(*) > 0;
  IF blockers IS NOT NULL AND NOT keeps_roles THEN
    RAISE EXCEPTION 'pgjot: the roles are still used in other databases: %', blockers USING ERRCODE = '2BP01',
      HINT = 'Uninstall there first, or leave the roles with --keep-roles.';
  END IF;

  WITH ours AS (
    SELECT s.classid, s.objid FROM pg_shdepend s
     WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = owner AND s.deptype = 'o' AND s.dbid = here
  )
  SELECT string_agg(DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid), ', ') INTO blockers
    FROM pg_depend d JOIN ours o ON o.classid = d.refclassid AND o.objid = d.refobjid
   WHERE d.deptype = 'n' AND (d.classid, d.objid) NOT IN (SELECT classid, objid FROM ours)
  HAVING count(*) > 0;
  IF blockers IS NOT NULL THEN
    RAISE EXCEPTION 'pgjot: its functions are still used by %', blockers USING ERRCODE = '2BP01',
      HINT = 'Drop or change these first.';
  END IF;

  -- A schema auth that was there before us keeps its owner, who is the one to take our access back.
  IF EXISTS (SELECT FROM pg_namespace n, aclexplode(n.nspacl) a
              WHERE n.nspname = 'auth' AND n.nspowner <> owner AND a.grantee = owner) THEN
    REVOKE ALL ON SCHEMA auth FROM pgjot_owner;
  END IF;
  EXECUTE format('GRANT pgjot_owner TO %I', admin);
  SET LOCAL ROLE pgjot_owner;
  -- RESTRICT, its default: what has come to depend on it in this moment makes it fail.
  DROP OWNED BY pgjot_owner;
  PERFORM set_config('role', admin, true);
  IF installed THEN
    RAISE INFO 'dropped schema pgjot and the session functions';
  END IF;
  IF keeps_roles THEN
    EXECUTE format('REVOKE pgjot_owner FROM %I', admin);
    RETURN;
  END IF;

  IF control IS NOT NULL THEN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM pgjot_control', current_database());
  END IF;
  IF lookup IS NOT NULL THEN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM pgjot_lookup', current_database());
  END IF;
  FOREACH one IN ARRAY logins LOOP
    EXECUTE format('DROP ROLE %s', one);
  END LOOP;
  DROP ROLE pgjot_owner;
  RAISE INFO 'dropped % slots, and roles pgjot_control and pgjot_owner',
    cardinality(array_remove(array_remove(logins, control), lookup));
END
$uninstall$;
