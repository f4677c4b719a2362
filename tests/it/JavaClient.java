import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.concurrent.TimeUnit;

/** Java's own client with its defaults: each first request on a connection offers h2c. Arguments: server, token, workspace, stream. */
public class JavaClient {
    public static void main(String[] args) throws Exception {
        var client = HttpClient.newHttpClient();
        var exec = URI.create(args[0] + "/api/workspaces/" + args[2] + "/exec");
        for (int i = 0; i < 3; i++) {
            var body = HttpRequest.BodyPublishers.ofString("{\"command\":\"echo hi" + i + "\"}");
            var request = HttpRequest.newBuilder(exec).header("Authorization", "Bearer " + args[1]).POST(body).build();
            var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println("exec " + answer.statusCode() + " " + answer.version() + " " + answer.body().contains("hi" + i));
        }
        var health = HttpRequest.newBuilder(URI.create(args[0] + "/health")).build();
        System.out.println("health " + client.send(health, HttpResponse.BodyHandlers.ofString()).statusCode());
        var events = HttpRequest.newBuilder(URI.create(args[0] + args[3])).header("Authorization", "Bearer " + args[1])
            .POST(HttpRequest.BodyPublishers.ofString("{\"command\":\"echo streamed\"}")).build();
        var stream = client.sendAsync(events, HttpResponse.BodyHandlers.ofLines()).get(30, TimeUnit.SECONDS);
        var found = stream.body().anyMatch(line -> line.contains("streamed"));
        System.out.println("sse " + stream.statusCode() + " " + stream.headers().firstValue("content-type").orElse("-") + " " + found);
    }
}
