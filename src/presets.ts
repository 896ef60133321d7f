/**
 * What is known of identity providers by name: their issuers, where their keys are, and how their tokens say what they are for.
 *
 * Taken from the providers' own documentation, whose pages `docs/providers.md` names. Each value can be replaced by a setting of the same name; which may not
 * be, and how that is reported, is `config-provider.ts`.
 */

/** The settings that only presets have. */
export interface OwnSettings {
  readonly domain?: string | undefined;
  readonly project?: string | undefined;
  readonly realm?: string | undefined;
  readonly userPool?: string | undefined;
  readonly clients?: readonly string[] | undefined;
  readonly tenant?: string | undefined;
  readonly hostedDomain?: string | undefined;
  readonly tokens?: 'access' | 'id' | undefined;
  /** Not of presets alone, but two of them read it. */
  readonly audience?: readonly string[] | undefined;
}

/** The name of one of them. */
export type OwnSetting = Exclude<keyof OwnSettings, 'audience'>;

/** What a preset knows of one provider. */
export interface KnownProvider {
  /** Each with its own place of keys: keys of one issuer never verify tokens of another. */
  readonly issuers: readonly [KnownIssuer, ...KnownIssuer[]];
  readonly algorithms: readonly ('RS256' | 'ES256' | 'EdDSA')[];
  /** Where the provider's tokens always name the same one. */
  readonly audience?: readonly string[];
  /** What `aud` may be where no audience is configured; null is none at all. */
  readonly unaddressed?: readonly (string | null)[];
  /** Authorized parties may be named instead of an audience. */
  readonly partiesSuffice?: true;
  readonly authorizedParties?: readonly string[];
  readonly typ?: readonly string[];
  readonly requiredClaims?: readonly string[];
  readonly claims?: Readonly<Record<string, readonly (string | null)[]>>;
}

interface KnownIssuer {
  readonly issuer: string;
  readonly jwksUri: string;
}

/** A provider by name: which settings it has, and what follows from them. */
export interface Preset {
  readonly needs: readonly (OwnSetting | 'audience')[];
  readonly takes: readonly OwnSetting[];
  /** All customers' tokens are signed with the same keys, so nothing but the audience says whose a token is. */
  readonly sharedKeys: boolean;
  /**
   * `given` has whatever `needs` names.
   *
   * @throws {PresetProblem} where a setting has a value that this provider cannot have.
   */
  know(given: OwnSettings): KnownProvider;
}

/** What is wrong with a setting. */
export class PresetProblem extends Error {
  override readonly name = 'PresetProblem';
  readonly setting: keyof OwnSettings;

  constructor(setting: keyof OwnSettings, message: string) {
    super(message);
    this.setting = setting;
  }
}

/** https:// and where a domain says, without a final slash; undefined where it is none. http only where it says so. */
export function baseUrl(domain: string): string | undefined {
  const text = /^https?:\/\//.test(domain) ? domain : `https://${domain}`;
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const odd = /[?#@\s]|(?<!^https?:)\/\//.test(domain);
  if (url === undefined || odd) return undefined;
  return (url.origin + url.pathname).replace(/\/+$/, '');
}

/** Where these hosts publish keys, they are those of all their customers. */
export const SHARED_KEY_HOSTS: readonly string[] = [
  'www.googleapis.com',
  'login.microsoftonline.com',
];

const RS256 = ['RS256'] as const;
const GUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** The presets, by the names that the configuration has for them. */
export const PRESETS = {
  clerk: preset({ needs: ['domain'] }, ({ domain }) => ({
    issuers: [underWellKnown(urlOf(domain))],
    algorithms: RS256,
    // A session token is for the application itself and has no aud. Clerk signs tokens for other applications too, with
    // the same issuer and keys: those have one, or are of type at+jwt.
    unaddressed: [null],
    typ: ['JWT'],
    // A pending session is that of somebody who has not yet done all that signing in takes.
    claims: { '/sts': ['active', null] },
  })),

  'stack-auth': preset({ needs: ['project'], takes: ['domain'] }, ({ project = '', domain }) => ({
    issuers: [
      underWellKnown(`${urlOf(domain ?? 'api.stack-auth.com')}/api/v1/projects/${project}`),
    ],
    algorithms: ['ES256'],
    audience: [project],
  })),

  auth0: preset({ needs: ['domain', 'audience'] }, ({ domain }) => ({
    issuers: [{ issuer: `${urlOf(domain)}/`, jwksUri: `${urlOf(domain)}/.well-known/jwks.json` }],
    algorithms: RS256,
  })),

  firebase: preset({ takes: ['project', 'tenant'], sharedKeys: true }, (given) => {
    const { project = onlyOf(given.audience), tenant } = given;
    if (project === undefined) {
      throw new PresetProblem('project', 'is missing: preset "firebase" needs it');
    }
    if (given.audience?.some((one) => one !== project)) {
      throw new PresetProblem(
        'audience',
        'is the project with preset "firebase", and nothing else',
      );
    }
    return {
      issuers: [
        {
          issuer: `https://securetoken.google.com/${project}`,
          jwksUri:
            'https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com',
        },
      ],
      algorithms: RS256,
      audience: [project],
      // Two tenants of a project may each have a user of the same id.
      claims: { '/firebase/tenant': [tenant ?? null] },
    };
  }),

  stytch: preset({ needs: ['project'], takes: ['domain'] }, ({ project = '', domain }) => {
    const host = project.startsWith('project-test-') ? 'test.stytch.com' : 'api.stytch.com';
    return {
      issuers: [
        {
          issuer: `stytch.com/${project}`,
          jwksUri: `${urlOf(domain ?? host)}/v1/sessions/jwks/${project}`,
        },
      ],
      algorithms: RS256,
      audience: [project],
      // Tokens of machines and of connected applications have the same issuer and audience, but no session.
      requiredClaims: ['https://stytch.com/session'],
    };
  }),

  keycloak: preset({ needs: ['domain', 'realm'], takes: ['tokens'] }, (given) => {
    const issuer = `${urlOf(given.domain)}/realms/${given.realm}`;
    return {
      issuers: [{ issuer, jwksUri: `${issuer}/protocol/openid-connect/certs` }],
      algorithms: ['RS256', 'ES256', 'EdDSA'],
      // Without a mapper, an access token's aud is "account" or nothing, and only azp says which client it is for.
      partiesSuffice: true,
      // The claim, not the header: Keycloak writes the kind of each token there.
      claims: { '/typ': [given.tokens === 'id' ? 'ID' : 'Bearer'] },
    };
  }),

  supabase: preset({ needs: ['domain'] }, ({ domain }) => ({
    issuers: [underWellKnown(`${urlOf(domain)}/auth/v1`)],
    algorithms: ['ES256', 'RS256'],
    audience: ['authenticated'],
    claims: { '/role': ['authenticated'] },
  })),

  cognito: preset({ needs: ['userPool', 'clients'], takes: ['tokens'] }, (given) => {
    const { userPool = '', clients = [], tokens = 'access' } = given;
    const region = userPool.slice(0, userPool.indexOf('_'));
    const suffix = region.startsWith('cn-') ? 'amazonaws.com.cn' : 'amazonaws.com';
    return {
      issuers: [underWellKnown(`https://cognito-idp.${region}.${suffix}/${userPool}`)],
      algorithms: RS256,
      // An access token names the client in client_id and has no aud; an ID token names it in aud.
      ...(tokens === 'id'
        ? { audience: clients }
        : { authorizedParties: clients, partiesSuffice: true }),
      claims: { '/token_use': [tokens] },
    };
  }),

  entra: preset({ needs: ['tenant', 'audience'], takes: ['tokens'], sharedKeys: true }, (given) => {
    const tenant = (given.tenant ?? '').toLowerCase();
    if (!GUID.test(tenant)) {
      throw new PresetProblem(
        'tenant',
        'must be the tenant\'s id (xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx): "common", "organizations" and "consumers" would let in strangers, and a domain name is in no token',
      );
    }
    const authority = `https://login.microsoftonline.com/${tenant}`;
    return {
      issuers: [
        { issuer: `${authority}/v2.0`, jwksUri: `${authority}/discovery/v2.0/keys` },
        {
          issuer: `https://sts.windows.net/${tenant}/`,
          jwksUri: `${authority}/discovery/keys`,
        },
      ],
      algorithms: RS256,
      // Where an application is its own API, both kinds of tokens have the same aud. Only a user's access token has scopes.
      ...(given.tokens === 'id' ? { claims: { '/scp': [null] } } : { requiredClaims: ['scp'] }),
    };
  }),

  google: preset(
    { needs: ['audience'], takes: ['hostedDomain'], sharedKeys: true },
    ({ hostedDomain }) => {
      const jwksUri = 'https://www.googleapis.com/oauth2/v3/certs';
      return {
        issuers: [
          { issuer: 'https://accounts.google.com', jwksUri },
          { issuer: 'accounts.google.com', jwksUri },
        ],
        algorithms: RS256,
        ...(hostedDomain === undefined ? {} : { claims: { '/hd': [hostedDomain] } }),
      };
    },
  ),

  descope: preset({ needs: ['project'], takes: ['domain'] }, ({ project = '', domain }) => {
    const url = `${urlOf(domain ?? 'api.descope.com')}/${project}`;
    const jwksUri = `${url}/.well-known/jwks.json`;
    return {
      // A JWT template of the project decides which of the two it is.
      issuers: [
        { issuer: project, jwksUri },
        { issuer: url, jwksUri },
      ],
      algorithms: RS256,
      unaddressed: [project, null],
      // A refresh token is a JWT as well, good for weeks, and is a DSR.
      claims: { '/drn': ['DS'] },
    };
  }),

  propelauth: preset({ needs: ['domain'] }, ({ domain }) => ({
    issuers: [underWellKnown(urlOf(domain))],
    algorithms: RS256,
    unaddressed: [null],
  })),
} satisfies Record<string, Preset>;

export type PresetName = keyof typeof PRESETS;

/** Their names, in the order of the documentation. */
export const PRESET_NAMES = Object.keys(PRESETS) as [PresetName, ...PresetName[]];

function preset(
  { needs = [], takes = [], sharedKeys = false }: Partial<Omit<Preset, 'know'>>,
  know: Preset['know'],
): Preset {
  return { needs, takes, sharedKeys, know };
}

/** The base URL of a domain that the schema has checked. */
function urlOf(domain: string | undefined): string {
  return baseUrl(domain ?? '') ?? '';
}

function underWellKnown(issuer: string): KnownIssuer {
  return { issuer, jwksUri: `${issuer}/.well-known/jwks.json` };
}

function onlyOf(list: readonly string[] | undefined): string | undefined {
  return list?.length === 1 ? list[0] : undefined;
}
