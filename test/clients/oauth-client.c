/*
 * A client of libpq 18 that signs in by OAUTHBEARER with a token that it has already.
 *
 *   oauth-client CONNINFO at-once|later|never SQL
 *
 * The token is in $TOKEN. "at-once" gives it to libpq when libpq first asks, "later" only when libpq
 * has spoken to the server and polls for it, "never" says that there is none. Prints what libpq
 * asked for, and the first value that the SQL returns; an error goes to standard error.
 *
 * Declares what it uses of libpq as the manual has it, so that it can be built where libpq has come
 * without its headers: https://www.postgresql.org/docs/18/libpq-oauth.html
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct pg_conn PGconn;
typedef struct pg_result PGresult;

enum { CONNECTION_OK = 0, PGRES_TUPLES_OK = 2 };
enum { PQAUTHDATA_PROMPT_OAUTH_DEVICE, PQAUTHDATA_OAUTH_BEARER_TOKEN };
typedef enum { PGRES_POLLING_FAILED, PGRES_POLLING_READING, PGRES_POLLING_WRITING, PGRES_POLLING_OK } Polling;

typedef struct PGoauthBearerRequest {
  const char *openid_configuration;
  const char *scope;
  Polling (*async)(PGconn *, struct PGoauthBearerRequest *, int *);
  void (*cleanup)(PGconn *, struct PGoauthBearerRequest *);
  char *token;
  void *user;
} PGoauthBearerRequest;

int PQlibVersion(void);
void PQsetAuthDataHook(int (*)(int, PGconn *, void *));
PGconn *PQconnectdb(const char *);
int PQstatus(const PGconn *);
char *PQerrorMessage(const PGconn *);
PGresult *PQexec(PGconn *, const char *);
int PQresultStatus(const PGresult *);
char *PQgetvalue(const PGresult *, int, int);
void PQclear(PGresult *);
void PQfinish(PGconn *);

static const char *when;

static Polling give(PGconn *connection, PGoauthBearerRequest *request, int *socket) {
  (void)connection;
  (void)socket;
  request->token = getenv("TOKEN");
  return PGRES_POLLING_OK;
}

static int on_auth_data(int type, PGconn *connection, void *data) {
  (void)connection;
  if (type != PQAUTHDATA_OAUTH_BEARER_TOKEN) return 0;
  PGoauthBearerRequest *request = data;
  printf("asked %s %s\n", request->openid_configuration, request->scope ? request->scope : "-");
  if (strcmp(when, "never") == 0) return -1;
  if (strcmp(when, "at-once") == 0) request->token = getenv("TOKEN");
  else request->async = give;
  return 1;
}

int main(int argc, char **argv) {
  if (argc != 4) return 64;
  when = argv[2];
  printf("libpq %d\n", PQlibVersion() / 10000);
  PQsetAuthDataHook(on_auth_data);
  PGconn *connection = PQconnectdb(argv[1]);
  int failed = PQstatus(connection) != CONNECTION_OK;
  if (!failed) {
    PGresult *result = PQexec(connection, argv[3]);
    failed = PQresultStatus(result) != PGRES_TUPLES_OK;
    if (!failed) printf("value %s\n", PQgetvalue(result, 0, 0));
    PQclear(result);
  }
  if (failed) fprintf(stderr, "%s", PQerrorMessage(connection));
  PQfinish(connection);
  return failed;
}
